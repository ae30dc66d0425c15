"""Image reading and writing, grids and the phantom."""
