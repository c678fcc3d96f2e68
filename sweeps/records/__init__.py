"""What is kept of a study: its folder, the storage of its trials, who owns which, what each one left."""
