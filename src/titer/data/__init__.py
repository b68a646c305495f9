"""From a name to batches of tokens: files and the hub, the columns of the field's data sets, rows, templates."""
