"""The comparison of arms: statistics, tables, plots, the report."""
