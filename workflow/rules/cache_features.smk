rule cache_features:
    input:
        data=[rules.prepare_data.output, rules.encode_latents.output, rules.encode_prompts.output],
        teacher=rules.train_teacher.output.model,
        clusters=rules.cluster_timesteps.output.clusters,
        code=find_code("cache_features"),
    output:
        index="results/features/index.json",
        shards=name_shards(),
    log:
        "logs/cache_features/cache_features.log",
    conda:
        "../envs/stagecraft.yaml"
    threads: 8
    resources:
        mem_mb=16000,
        runtime=240,
        gpu=count_gpus(),
    params:
        config=select_params("cache_features"),
    shell:
        "python -m stages.cache_features --params {params.config:q} --threads {threads} "
        "--data data/prepared --latents data/latents --prompts data/prompts --teacher results/teacher --clusters {input.clusters:q} "
        "--output results/features "
        "2>&1 | tee {log:q}"
