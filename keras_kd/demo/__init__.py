"""`keras-kd demo`: a teacher, three students and an exported file, on names in 40 languages."""
