"""HOW IT BECOMES A VOLUME: geometry, intensity, the store. No torch."""
