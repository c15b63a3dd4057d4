/** `edgemesh lab-delay`: the delay box of the lab, run by `edgemesh demo` and by the lab tests in a namespace of their own. */

export async function labDelayCommand(args: readonly string[]): Promise<number> {
  return await (await import("../lib/lab/delay_box.ts")).runDelayBox(args);
}
