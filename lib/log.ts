/**
 * Structured log lines on stderr. One line, one event: `time level module message key=value …` on a terminal,
 * JSON elsewhere. Levels: trace = per packet or frame; debug = decisions, names and addresses of users' traffic;
 * info = changes an operator wants to see; warn = worth an operator's attention; error = something stopped working.
 */

export const LOG_LEVELS = ["trace", "debug", "info", "warn", "error"] as const;
export type LogLevel = typeof LOG_LEVELS[number];
/** Values that may be attached to a line. Never secrets. */
export type LogFields = Readonly<Record<string, string | number | boolean | undefined>>;

export interface Logger {
  trace(message: string, fields?: LogFields): void;
  debug(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  error(message: string, fields?: LogFields): void;
  /** A logger that names its module in each line. */
  child(module: string): Logger;
  /** Whether a line of this level would be written: guards work that only serves the line. */
  enabled(level: LogLevel): boolean;
}

export interface LogSink {
  /** The lowest level written; may be changed while running. */
  level: LogLevel;
  /** Writes one finished line without its newline. */
  write(line: string): void;
  readonly format: "text" | "json";
  /** Wall clock in milliseconds. */
  wall(): number;
}

const RANK: Record<LogLevel, number> = { trace: 0, debug: 1, info: 2, warn: 3, error: 4 };

/** Makes the root logger over a sink. */
export function createLogger(sink: LogSink, module = ""): Logger {
  const put = (level: LogLevel, message: string, fields?: LogFields) => {
    if (RANK[level] < RANK[sink.level]) return;
    sink.write(
      sink.format === "json"
        ? JSON.stringify({ time: new Date(sink.wall()).toISOString(), level, module, msg: message, ...fields })
        : textLine(sink.wall(), level, module, message, fields),
    );
  };
  return {
    trace: (m, f) => put("trace", m, f),
    debug: (m, f) => put("debug", m, f),
    info: (m, f) => put("info", m, f),
    warn: (m, f) => put("warn", m, f),
    error: (m, f) => put("error", m, f),
    child: (name) => createLogger(sink, module ? `${module}.${name}` : name),
    enabled: (level) => RANK[level] >= RANK[sink.level],
  };
}

/** Lines to stderr; JSON unless stderr is a terminal or `format` says otherwise. */
export function stderrSink(level: LogLevel, format?: "text" | "json"): LogSink {
  const encoder = new TextEncoder();
  return {
    level,
    format: format ?? (Deno.stderr.isTerminal() ? "text" : "json"),
    wall: () => Date.now(),
    write: (line) => {
      try {
        Deno.stderr.writeSync(encoder.encode(line + "\n"));
      } catch {
        // A closed or full stderr must never stop the mesh.
      }
    },
  };
}

/** Keeps lines in memory, for tests. */
export function memorySink(level: LogLevel = "trace"): LogSink & { readonly lines: string[] } {
  const lines: string[] = [];
  return { level, format: "text", wall: () => 0, lines, write: (line) => void lines.push(line) };
}

/** A logger that writes nothing. */
export const nullLogger: Logger = createLogger({ level: "error", format: "text", wall: () => 0, write: () => {} });

function textLine(wall: number, level: LogLevel, module: string, message: string, fields?: LogFields): string {
  let line = `${new Date(wall).toISOString()} ${level.toUpperCase().padEnd(5)} ${
    module ? module + ": " : ""
  }${message}`;
  if (fields) {
    for (const [k, v] of Object.entries(fields)) {
      if (v === undefined) continue;
      const text = String(v);
      line += ` ${k}=${/^[\w.:/@%+-]+$/.test(text) ? text : JSON.stringify(text)}`;
    }
  }
  return line;
}
