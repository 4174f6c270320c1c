"""Areas, grids and time. No torch, no files but the region's own."""
