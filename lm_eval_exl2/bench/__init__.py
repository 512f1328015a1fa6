"""Speed, latency, cost and written accuracy of a checkpoint, in the terms of MLPerf Inference."""
