// Filled in by the commit that tests the engine.
