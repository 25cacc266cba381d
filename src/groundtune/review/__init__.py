"""`groundtune review`: a page in the browser where people accept, rename and reject the boxes of a model."""
