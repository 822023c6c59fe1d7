"""What a study asks of its patients' images: one file a task."""
