"""The benchmark tasks of the report's Figure 1 and Table 1: one reader per published on-disk format."""
