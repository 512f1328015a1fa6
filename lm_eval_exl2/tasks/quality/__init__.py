"""The task `exl2_quality`: written answers judged without a judge, and shown side by side."""
