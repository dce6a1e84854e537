"""One model over several processes: tensor parallelism by transformers' own plan."""
