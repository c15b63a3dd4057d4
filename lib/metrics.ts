/**
 * Counters, gauges and histograms with Prometheus text exposition (format 0.0.4). Names follow Prometheus' rules and
 * are checked when they are made; labels are fixed per metric and each metric has a cap on label values, because
 * labels come from names that others choose.
 */

/** Most label sets of one metric; the rest is counted under `other`. */
const MAX_SERIES = 2000;
const NAME = /^edgemesh_[a-z][a-z0-9_]*[a-z0-9]$/;

type Labels = readonly string[];

interface Metric {
  readonly name: string;
  readonly help: string;
  readonly type: "counter" | "gauge" | "histogram";
  lines(out: string[]): void;
}

export class Registry {
  readonly #metrics: Metric[] = [];

  /** A counter; its name must end in `_total`. */
  counter(name: string, help: string, labels: Labels = []): Counter {
    if (!name.endsWith("_total")) throw new RangeError(`Counter name must end in _total, not ${name}`);
    return this.#add(new Counter(name, help, "counter", labels));
  }

  gauge(name: string, help: string, labels: Labels = []): Counter {
    return this.#add(new Counter(name, help, "gauge", labels));
  }

  /** A gauge that is read when it is scraped. */
  observed(name: string, help: string, read: () => number): void {
    this.#add({ name, help, type: "gauge", lines: (out) => out.push(`${name} ${read()}`) });
  }

  /** A histogram with upper bounds in ascending order; units belong into the name. */
  histogram(name: string, help: string, bounds: readonly number[], labels: Labels = []): Histogram {
    return this.#add(new Histogram(name, help, labels, bounds));
  }

  /** The text that Prometheus scrapes. */
  expose(): string {
    const out: string[] = [];
    for (const m of this.#metrics) {
      out.push(`# HELP ${m.name} ${m.help}`, `# TYPE ${m.name} ${m.type}`);
      m.lines(out);
    }
    return out.join("\n") + "\n";
  }

  #add<M extends Metric>(metric: M): M {
    if (!NAME.test(metric.name)) {
      throw new RangeError(`Metric name must be edgemesh_ and lower-case words, not ${metric.name}`);
    }
    if (this.#metrics.some((m) => m.name === metric.name)) throw new RangeError(`Metric ${metric.name} exists already`);
    this.#metrics.push(metric);
    return metric;
  }
}

class Series<T> {
  readonly #labels: Labels;
  readonly #make: () => T;
  readonly #values = new Map<string, T>();

  constructor(labels: Labels, make: () => T) {
    this.#labels = labels;
    this.#make = make;
    if (labels.length === 0) this.#values.set("", make());
  }

  at(values: Labels): T {
    let key = render(this.#labels, values);
    let value = this.#values.get(key);
    if (value === undefined) {
      if (this.#values.size >= MAX_SERIES) key = render(this.#labels, this.#labels.map(() => "other"));
      value = this.#values.get(key) ?? this.#make();
      this.#values.set(key, value);
    }
    return value;
  }

  entries(): IterableIterator<[string, T]> {
    return this.#values.entries();
  }
}

export class Counter implements Metric {
  readonly name: string;
  readonly help: string;
  readonly type: "counter" | "gauge";
  readonly #series: Series<{ value: number }>;

  constructor(name: string, help: string, type: "counter" | "gauge", labels: Labels) {
    this.name = name;
    this.help = help;
    this.type = type;
    this.#series = new Series(labels, () => ({ value: 0 }));
  }

  add(n: number, ...labels: string[]): void {
    this.#series.at(labels).value += n;
  }

  set(n: number, ...labels: string[]): void {
    this.#series.at(labels).value = n;
  }

  lines(out: string[]): void {
    for (const [labels, cell] of this.#series.entries()) {
      out.push(`${this.name}${labels ? `{${labels}}` : ""} ${cell.value}`);
    }
  }
}

export class Histogram implements Metric {
  readonly name: string;
  readonly help: string;
  readonly type = "histogram" as const;
  readonly #bounds: readonly number[];
  readonly #series: Series<{ counts: Float64Array; sum: number }>;

  constructor(name: string, help: string, labels: Labels, bounds: readonly number[]) {
    this.name = name;
    this.help = help;
    this.#bounds = bounds;
    this.#series = new Series(labels, () => ({ counts: new Float64Array(bounds.length + 1), sum: 0 }));
  }

  observe(value: number, ...labels: string[]): void {
    const cell = this.#series.at(labels);
    let i = 0;
    while (i < this.#bounds.length && value > this.#bounds[i]!) i++;
    cell.counts[i]!++;
    cell.sum += value;
  }

  /** Takes over counts per bucket (one more than bounds) and their sum, where somebody else counts. */
  set(counts: readonly number[], sum: number, ...labels: string[]): void {
    const cell = this.#series.at(labels);
    cell.counts.set(counts);
    cell.sum = sum;
  }

  lines(out: string[]): void {
    for (const [labels, cell] of this.#series.entries()) {
      const prefix = labels ? labels + "," : "";
      let total = 0;
      this.#bounds.forEach((bound, i) => {
        total += cell.counts[i]!;
        out.push(`${this.name}_bucket{${prefix}le="${bound}"} ${total}`);
      });
      total += cell.counts[this.#bounds.length]!;
      out.push(`${this.name}_bucket{${prefix}le="+Inf"} ${total}`);
      out.push(
        `${this.name}_sum${labels ? `{${labels}}` : ""} ${cell.sum}`,
        `${this.name}_count${labels ? `{${labels}}` : ""} ${total}`,
      );
    }
  }
}

function render(names: Labels, values: Labels): string {
  return names.map((name, i) =>
    `${name}="${(values[i] ?? "").replace(/[\\"\n]/g, (c) => c === "\n" ? "\\n" : "\\" + c)}"`
  ).join(",");
}
