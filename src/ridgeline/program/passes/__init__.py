"""Passes: functions program -> program, named and ordered in pipeline.py."""
