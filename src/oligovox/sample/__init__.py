"""WHAT A STEP SEES: Batch, patches, streams, augmentation on the device."""
