"""From loop programs to native code through LLVM."""
