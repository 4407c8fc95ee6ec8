"""What the files and folders of a run are called."""

METRICS_FILE = "metrics.csv"
SAMPLES_FILE = "samples.jsonl"
CONFIG_FILE = "config.yaml"
REPORT_FILE = "report.md"
PLOTS_FOLDER = "plots"
TENSORBOARD_FOLDER = "tensorboard"
CHECKPOINTS_FOLDER = "checkpoints"
