"""Speed, latency, cost and accuracy of a checkpoint, in the terms of MLPerf Inference."""
