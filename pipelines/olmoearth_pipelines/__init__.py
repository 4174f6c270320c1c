"""The roads behind each subcommand, and the STAC and Dask engines they share."""
