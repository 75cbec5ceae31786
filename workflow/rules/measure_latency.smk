rule measure_latency:
    input:
        teacher=rules.train_teacher.output.model,
        importance=rules.rank_channels.output.importance,
        given=find_latency_table(),
        code=find_code("measure_latency"),
    output:
        table="results/latency.json",
    log:
        "logs/measure_latency/measure_latency.log",
    conda:
        "../envs/stagecraft.yaml"
    # All of the machine, so that nothing else runs while layers are timed.
    threads: workflow.resource_settings.cores or 1 if measures_latency() else 1
    resources:
        mem_mb=8000,
        runtime=120,
        gpu=count_gpus() if measures_latency() else 0,
    params:
        config=select_params("measure_latency"),
    shell:
        "python -m stages.measure_latency --params {params.config:q} --threads {threads} "
        "--teacher results/teacher --importance {input.importance:q} --output {output.table:q} "
        "2>&1 | tee {log:q}"
