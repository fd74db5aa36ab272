// Opens workflows of older releases with today's inputs. What older names and positions mean is known to the server,
// which says the same of prompts that are sent to it.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const PLACES = /DisTorch\w*MultiGPU$/;

async function inTodaysWords(document) {
  const answer = await api.fetchApi("/torchspan/api/v1/reopen", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(document),
  });
  if (answer.ok) return answer.json();
  app.extensionManager?.toast?.add({
    severity: "warn",
    summary: "Torchspan",
    detail: `Inputs of an older release could not be read (${answer.status}); check the devices of the loaders.`,
  });
  return document;
}

function placingNodes(graph) {
  const subgraphs = graph.definitions?.subgraphs ?? [];
  return [graph, ...subgraphs].flatMap((each) => each.nodes ?? []).filter((node) => PLACES.test(node.type));
}

app.registerExtension({
  name: "torchspan.olderWorkflows",

  async beforeConfigureGraph(graph) {
    const saved = placingNodes(graph);
    if (!saved.length) return;
    const { nodes } = await inTodaysWords({ nodes: saved });
    saved.forEach((node, index) => Object.assign(node, nodes[index]));
  },

  async setup() {
    // The editor asks no extension before it opens a graph in API format, so it is called with what is to be opened.
    const open = app.loadApiJson?.bind(app);
    if (!open) return;
    app.loadApiJson = async (prompt, ...others) => {
      const older = Object.values(prompt).some((node) => PLACES.test(node.class_type));
      return open(older ? (await inTodaysWords({ prompt })).prompt : prompt, ...others);
    };
  },
});
