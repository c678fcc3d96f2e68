"""What a study is: its YAML file, its space, design and limits, and how it is planned."""
