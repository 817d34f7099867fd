"""Tables, figures, one HTML page. No torch."""
