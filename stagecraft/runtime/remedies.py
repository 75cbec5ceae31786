"""Advice on how each stage takes less memory. Light, as a Snakefile imports it: no torch, no NumPy."""

# Only what the stage reads, and what its peak follows; a test holds that the keys are among its params.
REMEDIES = {
    "prepare_data": "lower prepare_data.resolution",
    "train_autoencoder": "lower train_autoencoder.batch_size, or set its gradient_checkpointing: true",
    "train_teacher": "lower train_teacher.batch_size, or set its gradient_checkpointing: true",
    "train_extractor": "lower train_extractor.batch_size",
    "cluster_timesteps": "lower cluster_timesteps.draws or cluster_timesteps.grid",
    "cache_features": "lower cache_features.batch_size or cache_features.shard_size",
    "rank_channels": "set search_block.channels: 1.0, which needs no ranking",
    "search_block": "lower search_block.batch_size, search_block.local_triples or search_block.output_triples",
    "retrain": "lower retrain.batch_size, or set its gradient_checkpointing: true",
    "evaluate": "lower evaluate.batch_size or evaluate.speed_batch",
}
