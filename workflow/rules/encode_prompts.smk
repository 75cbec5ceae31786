rule encode_prompts:
    input:
        data=rules.prepare_data.output,
        given=find_encoder(),
        code=find_code("encode_prompts"),
    output:
        index="data/prompts/index.json",
        prompts=["data/prompts/prompts.safetensors"] if is_prompted() else [],
        encoder=name_encoder("data/prompts"),
    log:
        "logs/encode_prompts/encode_prompts.log",
    conda:
        "../envs/stagecraft.yaml"
    threads: 8
    resources:
        mem_mb=16000,
        runtime=240,
        gpu=count_gpus() if is_prompted() else 0,
    params:
        config=select_params("encode_prompts"),
    shell:
        "python -m stages.encode_prompts --params {params.config:q} --threads {threads} "
        "--data data/prepared --output data/prompts "
        "2>&1 | tee {log:q}"
