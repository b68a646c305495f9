"""From a name to batches of tokens: files, the hub, the field's data sets, rows, templates."""
