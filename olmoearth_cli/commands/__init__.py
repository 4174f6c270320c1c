"""One module per subcommand: flags to a request, a road's reports to one result."""
