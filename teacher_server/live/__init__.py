"""The live teacher server: a request's bytes → images → batches → targets → a reply's bytes."""
