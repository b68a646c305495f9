"""Screening: which rows of an upload are dangerous, by several signals at a stated rate of false alarms."""
