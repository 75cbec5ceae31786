rule record:
    input:
        results=[file for files in RESULTS.values() for file in files],
        code=find_code("record"),
    output:
        record="results/record.json",
    log:
        "logs/record/record.log",
    conda:
        "../envs/stagecraft.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        config=lambda wildcards: json.dumps(config, sort_keys=True),
    shell:
        "python -m stages.record --params {params.config:q} --threads {threads} "
        "--results {input.results:q} --output {output.record:q} "
        "2>&1 | tee {log:q}"
