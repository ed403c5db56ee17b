"""`keras-kd distil`: from files of texts and a teacher to a small student that ships, in one folder."""
