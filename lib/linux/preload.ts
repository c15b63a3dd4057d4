/**
 * Opens glibc when imported. Tests of anything that uses the loop import this file first: opened inside a test, the
 * library would look like a leak to the resource sanitizer, since it stays open for the life of the process.
 */
import { libc, waitingLibc } from "./ffi.ts";

libc();
waitingLibc();
