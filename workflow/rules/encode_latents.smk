rule encode_latents:
    input:
        data=rules.prepare_data.output,
        autoencoder=[rules.train_autoencoder.output.index, rules.train_autoencoder.output.model],
        code=find_code("encode_latents"),
    output:
        index="data/latents/index.json",
        latents=["data/latents/latents.npy"] if runs_in_latents() else [],
    log:
        "logs/encode_latents/encode_latents.log",
    conda:
        "../envs/stagecraft.yaml"
    threads: 8
    resources:
        mem_mb=16000,
        runtime=240,
        gpu=count_gpus() if runs_in_latents() else 0,
    params:
        config=select_params("encode_latents"),
    shell:
        "python -m stages.encode_latents --params {params.config:q} --threads {threads} "
        "--data data/prepared --autoencoder results/autoencoder --output data/latents "
        "2>&1 | tee {log:q}"
