"""How the bundled base model is made: its facts and sentences, its tokenizer, its training."""
