/** Entry of the one executable: argv → cmd/program.ts → exit code. */
import { runProgram } from "./cmd/program.ts";

Deno.exitCode = await runProgram(Deno.args);
// Long-running commands have shut everything down when they return; nothing may keep a finished process alive.
Deno.exit();
