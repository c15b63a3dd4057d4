/** x */
export function demoCommand(_f: unknown): Promise<number> {
  return Promise.resolve(0);
}
