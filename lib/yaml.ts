/**
 * YAML for who needs it rarely: import this file dynamically, never the package itself. A dynamic import of a CommonJS
 * package has its names in the bundle that is shipped elsewhere than in a checkout.
 */
export { parse, stringify } from "yaml";
