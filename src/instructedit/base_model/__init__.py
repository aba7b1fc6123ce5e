"""Pretraining of the bundled base model: corpus of facts and sentences, tokenizer, training, recall."""
