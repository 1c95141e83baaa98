"""The parts of `benchmarks.validate`: what lands, how, what runs meanwhile, and the account of it all."""
