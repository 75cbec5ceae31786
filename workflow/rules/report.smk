PLOTS = ("candidates.json", "curves.json", "silhouette.json", "similarity.png", "supernets.json")


rule report:
    input:
        metrics=rules.evaluate.output.metrics,
        samples=rules.evaluate.output.samples,
        clusters=rules.cluster_timesteps.output.clusters,
        architecture=rules.assemble.output.architecture,
        search=[rules.collect_search.output.index, rules.collect_search.input.reports],
        logs=[
            rules.train_autoencoder.output.history,
            rules.train_teacher.output.history,
            rules.train_extractor.output.history,
            rules.retrain.output.history,
        ],
        code=find_code("report"),
    output:
        page="results/report.html",
        plots=expand("results/plots/{name}", name=PLOTS),
    log:
        "logs/report/report.log",
    conda:
        "../envs/stagecraft.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        config=select_params("report"),
    shell:
        "python -m stages.report --params {params.config:q} --threads {threads} "
        "--metrics {input.metrics:q} --samples {input.samples:q} --clusters {input.clusters:q} --architecture {input.architecture:q} "
        "--search results/search --logs {input.logs:q} --output {output.page:q} --plots results/plots "
        "2>&1 | tee {log:q}"
