def described(model, strict): return {}
