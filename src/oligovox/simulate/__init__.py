"""Cohorts made by MR physics: anatomy, tissues, sequences, lesions, scanners. No torch."""
