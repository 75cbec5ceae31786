# No part of `all`: `snakemake export`.


rule export:
    input:
        data=[rules.prepare_data.output, rules.encode_latents.output],
        teacher=rules.train_teacher.output.model,
        student=rules.retrain.output.model,
        architecture=rules.assemble.output.architecture,
        extractor=rules.train_extractor.output.weights,
        autoencoder=rules.encode_latents.input.autoencoder,
        given=find_extractor(),
        counted=check_comparison,
        packages=check_export,
        code=find_code("export"),
    output:
        graphs=expand("results/onnx/{name}.onnx", name=name_graphs()),
        scheduler="results/onnx/scheduler_config.json",
        record="results/onnx/export.json",
    log:
        "logs/export/export.log",
    conda:
        "../envs/export.yaml"
    threads: 1
    resources:
        mem_mb=16000,
        runtime=1440,
    params:
        config=select_params("evaluate"),
    shell:
        "python -m stages.export --params {params.config:q} --threads {threads} "
        "--data data/prepared --latents data/latents --autoencoder results/autoencoder --teacher results/teacher "
        "--student results/student --architecture {input.architecture:q} --extractor {input.extractor:q} "
        "--output results/onnx "
        "2>&1 | tee {log:q}"
