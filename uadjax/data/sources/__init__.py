"""What labeling tools write: each module reads one format into `samples.Found`."""
