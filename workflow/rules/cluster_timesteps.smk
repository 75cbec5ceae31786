rule cluster_timesteps:
    input:
        data=[rules.prepare_data.output, rules.encode_latents.output, rules.encode_prompts.output],
        teacher=rules.train_teacher.output.model if needs_gradients() else [],
        code=find_code("cluster_timesteps"),
    output:
        clusters="results/clusters.json",
    log:
        "logs/cluster_timesteps/cluster_timesteps.log",
    conda:
        "../envs/stagecraft.yaml"
    threads: 8
    resources:
        mem_mb=16000,
        runtime=240,
        gpu=count_gpus() if needs_gradients() else 0,
    params:
        config=select_params("cluster_timesteps"),
    shell:
        "python -m stages.cluster_timesteps --params {params.config:q} --threads {threads} "
        "--data data/prepared --latents data/latents --prompts data/prompts --teacher results/teacher --output {output.clusters:q} "
        "2>&1 | tee {log:q}"
