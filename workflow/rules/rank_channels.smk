rule rank_channels:
    input:
        data=[rules.prepare_data.output, rules.encode_latents.output, rules.encode_prompts.output],
        teacher=rules.train_teacher.output.model,
        code=find_code("rank_channels"),
    output:
        importance="results/importance.json",
    log:
        "logs/rank_channels/rank_channels.log",
    conda:
        "../envs/stagecraft.yaml"
    threads: 8
    resources:
        mem_mb=16000,
        runtime=240,
        gpu=count_gpus(),
    params:
        config=select_params("rank_channels"),
    shell:
        "python -m stages.rank_channels --params {params.config:q} --threads {threads} "
        "--data data/prepared --latents data/latents --prompts data/prompts --teacher results/teacher "
        "--output {output.importance:q} "
        "2>&1 | tee {log:q}"
