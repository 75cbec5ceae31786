rule evaluate:
    input:
        data=[rules.prepare_data.output, rules.encode_prompts.output],
        teacher=rules.train_teacher.output.model,
        student=rules.retrain.output.model,
        architecture=rules.assemble.output.architecture,
        extractor=rules.train_extractor.output.weights,
        autoencoder=rules.encode_latents.input.autoencoder,
        given=[find_extractor(), find_clip()],
        counted=check_comparison,
        code=find_code("evaluate"),
    output:
        metrics="results/metrics.json",
        samples="results/samples.npz",
    log:
        "logs/evaluate/evaluate.log",
    conda:
        "../envs/stagecraft.yaml"
    threads: 8
    resources:
        mem_mb=16000,
        runtime=1440,
        gpu=count_gpus(),
        processes=count_processes,
    params:
        config=select_params("evaluate"),
    shell:
        "python -m stages.evaluate --params {params.config:q} --threads {threads} --processes {resources.processes} "
        "--data data/prepared --prompts data/prompts --autoencoder results/autoencoder --teacher results/teacher --student results/student "
        "--architecture {input.architecture:q} "
        "--extractor {input.extractor:q} --output {output.metrics:q} --samples {output.samples:q} "
        "2>&1 | tee {log:q}"
