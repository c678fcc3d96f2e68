"""Studies: a YAML file names an experiment, its arms and a search space; workers train trials; a report compares."""
