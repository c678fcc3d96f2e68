"""A study while it runs: status, TensorBoard, Optuna's dashboard."""
